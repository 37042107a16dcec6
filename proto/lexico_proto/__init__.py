"""What two processes must agree on: messages, services and errors."""
