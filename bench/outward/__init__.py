"""What bench/sending.py is made of: a world to send to, two servers, those who submit, and what is measured."""
