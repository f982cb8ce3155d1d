"""Read models of the served folder, as plain values for pages and clients.

Every name is looked up inside one folder, links and all; nothing here runs a model.
"""
