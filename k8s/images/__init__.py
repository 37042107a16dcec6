"""Images of this project: how they are built, and what is looked at in them."""
