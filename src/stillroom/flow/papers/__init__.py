"""Papers of a run: inventories, data sheets, forms and a model card, from one graph of its lineage.

``graph`` reads the lineage; each format is one module that writes a ``Paper`` from it; ``writer``
lists them by name. What the lineage does not hold is written as unknown, and counted.
"""
