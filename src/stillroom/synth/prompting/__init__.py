"""Teacher requests, and questions that need no teacher.

``requests`` holds prompt templates, request batches and reply parsing; ``stepwise`` the base
class of generators that ask several times, with their sampling settings (temperature, top_p);
``conversation`` reads questions and answers from records. ``question_templates``,
``question_topics`` and ``english_*`` turn statements into questions by rule, and
``question_features`` describes a question for the filter ``quality``.
"""
