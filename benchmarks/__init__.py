"""Programs that measure speed, memory and false verdicts.

With this file the folder comes before an installed package of its name, which pyarrow 17 brings.
"""
