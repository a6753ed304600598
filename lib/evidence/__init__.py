"""What the records say: intervals, tables, comparisons, and what is claimed and still owed.

``statistics`` has the intervals, ``tables`` turns records into tables, ``comparisons`` sets two
groups of runs beside each other, ``claims`` holds published numbers against ours. ``experiments``
and ``plan`` are what is to be run, ``ledger`` what there is of it, ``queue`` works off the plan.
``timing`` measures how long a run takes here, ``estimates`` says how long a GPU takes.
"""
