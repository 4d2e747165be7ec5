"""Foreign weights into models of this project. Not their training."""
