"""Scripts that let a shell complete the commands and options of palinka."""
