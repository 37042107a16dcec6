"""The options of every command. Nothing here imports what a command needs: `--help` is quick."""
