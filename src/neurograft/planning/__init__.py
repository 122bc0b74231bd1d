"""From members and their graph to a `FusionPlan`: a method fills in two maps per neuron group."""
