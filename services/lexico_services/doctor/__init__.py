"""What a start needs, looked at by `lexico doctor`; of the machine, every start looks at it too."""
