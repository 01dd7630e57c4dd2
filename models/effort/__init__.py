"""More work for harder prompts: several answers, who judges them, and when to stop."""
