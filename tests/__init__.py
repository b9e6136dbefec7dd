"""The tests of RepYOLO and the helper modules that they share."""
