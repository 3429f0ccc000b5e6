"""Commands that take care of what is registered: rebuild it, hold the stores against each other, collect what nothing reaches."""
