"""From a plan and its members to a network: the one formula, tensor by tensor."""
