"""What a study found: its results, their statistics, and the tables and exports made of them."""
