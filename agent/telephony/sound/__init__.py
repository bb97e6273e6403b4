"""Sound on a telephone line, both ways, without any socket or clock."""
