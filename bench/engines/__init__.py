"""What sharing costs and saves in the engines that people run."""
