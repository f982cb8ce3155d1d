"""Near-duplicate detection, paraphrase detection and benchmark decontamination.

``shingles`` holds n-grams, MinHash and Jaccard similarity; ``near_duplicates`` finds all pairs of
many texts above a threshold; ``decontamination`` finds benchmark items word by word, and
``paraphrases`` by embeddings.
"""
