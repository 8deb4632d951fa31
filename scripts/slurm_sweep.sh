#!/bin/bash
# A sweep whose waiting is a small job of its own, where login nodes end what runs for days:
#
#     sbatch scripts/slurm_sweep.sh +experiment=llama_60m_density0.1 sparsity.density=0.05,0.1
#
# This job submits those that train (configs/cluster/slurm.yaml), waits for them and prints the table. If it ends before
# them they go on; typed again when they have ended, finished ones are skipped and the others continued.

#SBATCH --job-name=smet-sweep
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=7-00:00:00
#SBATCH --no-requeue
#SBATCH --signal=B:INT@120
#SBATCH --output=slurm-%j.out

exec smet-train -m +cluster=slurm "$@"
