"""What a run reports: event types, the bus that writes them, and their readers."""
