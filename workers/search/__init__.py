"""From a goal to a recipe: what can be tried is proposed by cheap predictions, tried as any recipe is, and measured.

`allocation`   bits for every layer, cheapest in accuracy first
`predictor`    what fewer bits cost, without trying them
`proposals`    which recipes are worth trying for a goal, and in which order
`measuring`    one recipe tried: accuracy on the selection images, bytes, latency, operations
`choosing`     what a candidate misses of the goal, and which is the best
`confirming`   images that have no part in comparisons, and which candidates they confirm
`search`       tries proposals until nothing is left or time is up, and chooses
`front`        what no other candidate beats, as data and as a drawing
"""
