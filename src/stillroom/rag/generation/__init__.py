"""Generation: prompts, cited and checked answers, and the semantic answer cache."""
