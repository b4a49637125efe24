"""The study: parameters, figures, tables, pages, and the runner of the notebooks.

Its modules are imported one by one, `from robustlib.study import plotting, results`, for what they
need, JupyterLab and papermill among it, comes with the extra `study` only.
"""
