"""A search for better hyper-parameters: trainings whose recipes are mutations of the best ones before them."""
