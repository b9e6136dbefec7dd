"""Accuracy on a data set, by ultralytics' validators."""
