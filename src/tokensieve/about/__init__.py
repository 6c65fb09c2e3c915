"""Facts about methods, models and this machine, determined from the code itself."""
