"""The command line: one thin file a command, which reads arguments, calls a room and prints."""
