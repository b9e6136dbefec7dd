"""Data sets of other tools, each format read by a module, and written as YOLO's: `python -m utils.convert_data`."""
