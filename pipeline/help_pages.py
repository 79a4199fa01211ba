r"""What --help says below the options: examples of each command, exit codes, the environment.

A paragraph that begins with `\b` keeps its lines.
"""

GWM = """
\b
A first look:
  gwm demo                                     all of it on rendered videos
  gwm prepare videos=in output=flow --dry-run  what would be done, and how long it takes
  gwm prepare --help                           the same page for one command

\b
Values:
  Every value has a name. --config FILE gives some, KEY=VALUE words the others, and they win:
  defaults < the file that a file extends < the file < words from left to right.
  gwm COMMAND --print-config                   all values of a command, as they are now
  gwm schema COMMAND                           what each means, as JSON Schema
  gwm --install-completion                     <TAB> completes commands, keys and values

\b
Exit codes:
  0    all done
  1    an error: one sentence on stderr, --debug adds the traceback
  2    done, but something is in quarantine/ with its reason
  130  interrupted: the same command goes on where it stopped

\b
Results are on stdout, talk and progress on stderr: a table and a bar on a terminal,
otherwise lines of JSON.

\b
Environment:
  AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE,
  AWS_REGION                    S3, as in every S3 client; FSSPEC_S3_ANON=true reads public buckets
  HF_TOKEN, HF_HOME, HF_HUB_OFFLINE
                                hf:// paths and pretrained weights; 1 in the last stays off the network
  RAY_ADDRESS                   the Ray cluster to join, as placement.address= does
  RAY_API_SERVER_ADDRESS        the dashboard that submit and status speak to, as --address does
  RAY_AUTH_MODE, RAY_AUTH_TOKEN Ray's authentication
  MLFLOW_TRACKING_URI           the MLflow server, or none, as tracking.uri= does; its user and password in
  MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN
  GWM_PRICE_PER_HOUR            what the machines cost: --dry-run then says what a job does
  GWM_RAFT_WEIGHTS, GWM_BACKBONE_WEIGHTS
                                weights for the demo, instead of a download
  NO_COLOR, TERM=dumb           no colours; no moving bar. FORCE_COLOR turns no pipe into a terminal
A YAML file takes any other variable as ${oc.env:NAME}.
"""

PREPARE = """
\b
Examples:
  gwm prepare videos=clip.mp4 output=flow
  gwm prepare --config conf/prepare.yaml videos=s3://bucket/videos output=s3://bucket/flow
  gwm prepare videos='in/*.mov' output=flow estimate_flow.estimator=dis decode.fps=5
  gwm prepare videos=list.csv output=flow placement.estimate_flow.num_gpus=1
  gwm prepare videos=in output=flow --dry-run
"""

TRAIN = """
\b
Examples:
  gwm train --config conf/train.yaml flow=flow output=model
  gwm train --config conf/train_unet.yaml flow=s3://bucket/flow output=s3://bucket/model
  gwm train --config conf/train.yaml flow=flow output=model num_workers=4 placement.train_worker.num_gpus=1
  gwm train --config conf/train.yaml flow=flow output=finer initial_model=model num_steps=400
"""

SEGMENT = """
\b
Examples:
  gwm segment --config conf/segment.yaml images=photos model=model output=masks
  gwm segment --config conf/segment.yaml images=clip.mp4 model=s3://bucket/model output=masks write_png=true
  gwm segment --config conf/segment.yaml images=clip.mp4 model=model output=masks adapt=true
  gwm segment images=s3://bucket/photos model=model output=s3://bucket/masks --dry-run
"""

EVALUATE = """
\b
Examples:
  gwm evaluate --config conf/evaluate.yaml data=DAVIS masks=masks output=scores
  gwm evaluate dataset=images data=ECSSD model=model output=scores
  gwm evaluate dataset=davis2016 data=DAVIS model=model protocol=paper output=scores
"""

EXPORT = """
\b
Examples:
  gwm export format=coco masks=masks output=masks.json
  gwm export format=webdataset masks=s3://bucket/masks images=s3://bucket/photos output=s3://bucket/tars
  gwm export format=flo flow=flow output=flo
  gwm export format=onnx model=model output=model.onnx
"""

DEMO = """
\b
Examples:
  gwm demo
  gwm demo --videos holiday.mp4 --output holiday
"""

VERIFY = """
\b
Examples:
  gwm verify s3://bucket/flow
  gwm verify masks --repair
"""

SCHEMA = """
\b
Examples:
  gwm schema prepare > prepare.schema.json
  gwm schema train | jq .properties.objective

\b
A YAML file whose first line is
  # yaml-language-server: $schema=prepare.schema.json
is then checked and completed by editors.
"""

SUBMIT = """
\b
Examples:
  gwm submit prepare --config conf/prepare.yaml videos=s3://bucket/videos output=s3://bucket/flow --follow
  gwm submit segment images=s3://bucket/photos model=s3://bucket/model output=s3://bucket/masks --env HF_TOKEN
"""

STATUS = """
\b
Examples:
  gwm status s3://bucket/flow model
  gwm status --address http://HEAD:8265
"""
