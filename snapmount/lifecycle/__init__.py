"""One line of life for every snapshot: planned, taken or adopted, served, recovered, ended.

Only here, and in doctor, are both sides of the seam seen: what makes images, and what shows them.
"""
