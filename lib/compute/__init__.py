"""Where the time goes: views on the CPU and in batches, the log-sum-exp of the losses, k-means.

Nothing here knows of runs, configurations or data sets; tensors go in, tensors come out.
"""
