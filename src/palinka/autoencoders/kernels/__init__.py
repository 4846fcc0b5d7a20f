"""Fast paths of autoencoders, each beside the plain definition that it must equal."""
