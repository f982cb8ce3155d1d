"""Papers of a run: inventories, data sheets, forms and a model card, from one graph of its lineage.

``graph`` reads the lineage, and ``node`` what the files of one job hold; each format is one module
that writes a ``Paper`` from them; ``writer`` lists them by name. What the lineage does not hold is
written as unknown, and counted.
"""
