"""The lab's key and ledger, labeled media writers, and watermark lookup."""
