"""The book: notebooks of record, corruptions, results and report cards as a site without a network.

`record` says which executed notebooks may be committed, `site` makes the pages: `landing`,
`corruption_pages`, the chapters, the cards. Comes with the extra `study`.
"""
