"""What is written about the program by itself: manual pages and completion, from the parser and the settings."""
