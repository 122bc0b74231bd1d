"""From a model and example inputs to a `NeuronGraph`: which tensor axes share neurons."""
