"""How the program gets onto a machine and into service: install, uninstall, setup, and what is looked at before."""
