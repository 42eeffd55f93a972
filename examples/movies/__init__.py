"""Ratings → the average of each movie → joined with the movies → rated movies; as agents and as streams.

``python -m examples.movies`` runs either form over ratings of its own making, or over files::

    python -m examples.movies --form agents
    MILLSTREAM_DATA_MOVIES=folder python -m examples.movies     # with movies.dat and ratings.dat
"""
