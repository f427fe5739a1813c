"""The published pipelines of DemoFusion and AccDiffusion beside this engine, on the same weights and from the same seeds."""
