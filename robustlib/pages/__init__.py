"""HTML pages that need no network, formulas included: how any page of the project is made.

Its modules are imported one by one. What they need comes with the extra `study`.
"""
