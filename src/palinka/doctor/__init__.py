"""What `palinka doctor` looks at: what is installed, the machine, folders and the hub."""
