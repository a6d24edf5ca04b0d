"""The search for better options: a study of trials, finals among the best, and a winner that is registered."""
