"""The parts of ``benchmarks.gpu``: each module has ``run(setting)``, which prints results as they come."""
