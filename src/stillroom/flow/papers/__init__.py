"""Papers of a run: inventories, data sheets, forms and the model card, from one graph of lineage."""
