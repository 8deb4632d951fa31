#!/bin/bash
# One run as a job of SLURM, from the folder where outputs/ is to be, in an environment that has smet-train:
#
#     sbatch scripts/slurm_run.sh +experiment=llama_60m_density0.1 train.device=cuda
#     sbatch --partition=gpu --time=4:00:00 scripts/slurm_run.sh ...      options of sbatch win over those below
#
# Two minutes before its time is over the run saves and the job is put into the queue again; there the same command
# finds its run folder and goes on. It ends when the run is finished, or has failed.

#SBATCH --job-name=smet-train
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out

unfinished=""
# B: SLURM sends USR1 to this shell alone, which passes it on and knows then that the run has not finished.
trap 'unfinished=1; kill -USR1 "$run"' USR1
# Of a pre-emption SLURM tells the run itself; a second signal would end it before it has saved.
trap 'unfinished=1' TERM

case " $* " in
*" checkpoint.resume=never "*)
    # Each start would get a fresh folder: this job's has its number, and what is in it when SLURM starts it once more
    # is its own.
    case " $* " in *" hydra.run.dir="*) ;; *) set -- "$@" "hydra.run.dir=outputs/slurm-$SLURM_JOB_ID" ;; esac
    [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || set -- "$@" checkpoint.resume=auto
    ;;
esac

export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # which srun does not take over from sbatch by itself
srun smet-train "$@" &
run=$!
wait "$run"
status=$?
while kill -0 "$run" 2>/dev/null; do # a signal ends the wait, not the run
    wait "$run"
    status=$?
done

if [ -n "$unfinished" ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
