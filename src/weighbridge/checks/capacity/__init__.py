"""What fits on a card: the accounting of servers, and its report."""
