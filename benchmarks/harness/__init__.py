"""What every table shares.

`results`: where numbers go and what is written beside them. `cells`: long tables in pieces.
`images`: data as plain arrays. `work`: one network, one seed, one budget; training, retraining
and accuracy with their cost counted. `masks`: which weights are pruned, and masks of exact sizes.
`options`: the words every table understands.
"""
