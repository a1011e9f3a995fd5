"""The command line: parser, commands, what they print, the live panel."""
