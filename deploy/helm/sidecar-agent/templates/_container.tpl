{{- /* What every container of the DaemonSet has, whatever it runs. */ -}}
{{- define "sidecar-agent.container" -}}
image: {{ include "sidecar-agent.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
  # Whose pods are this agent's.
  - name: NODE_NAME
    valueFrom:
      fieldRef:
        fieldPath: spec.nodeName
  - name: POD_NAMESPACE
    valueFrom:
      fieldRef:
        fieldPath: metadata.namespace
  - name: POD_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  {{- with .Values.agent.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
securityContext:
  privileged: false
  # The capabilities below are there from the beginning; no more can be had.
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsUser: 0
  runAsGroup: 0
  capabilities:
    drop: [ALL]
    # Exactly those of docs/capabilities.md, which says why.
    add:
      - SYS_ADMIN
      - NET_ADMIN
      - SYS_PTRACE
      - DAC_OVERRIDE
      {{- with .Values.securityContext.extraCapabilities }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
  seccompProfile:
    {{- toYaml .Values.securityContext.seccompProfile | nindent 4 }}
  {{- if include "sidecar-agent.hasAppArmorField" . }}
  appArmorProfile:
    type: {{ .Values.securityContext.appArmorProfile }}
  {{- end }}
  {{- with .Values.securityContext.seLinuxOptions }}
  seLinuxOptions:
    {{- toYaml . | nindent 4 }}
  {{- end }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
volumeMounts:
  # Pins of programs and maps: what makes capture outlive the agent.
  - name: bpffs
    mountPath: /sys/fs/bpf
    mountPropagation: HostToContainer
  # Programs are attached to the cgroups of pods; nothing is written there.
  - name: cgroup
    mountPath: /sys/fs/cgroup
    mountPropagation: HostToContainer
    readOnly: true
  # The container's own /proc shows the same processes, but its /proc/sys is read-only: settings of
  # the pods' network namespaces are made here.
  - name: proc
    mountPath: /host/proc
    mountPropagation: HostToContainer
  # Network namespaces, by the names that container runtimes give them.
  - name: netns
    mountPath: /run/netns
    mountPropagation: HostToContainer
    readOnly: true
  - name: run
    mountPath: /run/sidecar-agent
  - name: state
    mountPath: /var/lib/sidecar-agent
  {{- if and .Values.cni.enabled .Values.kubernetes.enabled }}
  - name: cni-bin
    mountPath: /host/cni/bin
  - name: cni-conf
    mountPath: /host/cni/conf
  {{- end }}
  {{- if .Values.staticConfig }}
  - name: config
    mountPath: /etc/sidecar-agent/resources
    readOnly: true
  {{- end }}
{{- end -}}

{{- define "sidecar-agent.runArgs" -}}
- run
{{- with .Values.agent }}
- --log={{ .log }}
- --log-format={{ .logFormat }}
- --failure-policy={{ .failurePolicy }}
- --compat={{ .compat }}
- --drain={{ .drainSeconds | int }}
- --stall-limit={{ .stallLimitSeconds | int }}
- --max-workloads={{ .maxWorkloads | int }}
- --max-plans={{ .maxPlans | int }}
- --max-rules={{ .maxRules | int }}
- --max-sockets={{ .maxSockets | int }}
- --max-original-dst={{ .maxOriginalDst | int }}
{{- range .dnsServers }}
- --dns-server={{ . }}
{{- end }}
{{- end }}
- --metrics-address={{ .Values.metrics.address }}:{{ .Values.metrics.port }}
{{- if .Values.metrics.perWorkload }}
- --metrics-per-workload
{{- end }}
{{- if .Values.kubernetes.enabled }}
- --kube
- --mesh-config-map={{ include "sidecar-agent.meshNamespace" . }}/{{ .Values.kubernetes.meshConfigMap.name }}
- --own-pod=$(POD_NAMESPACE)/$(POD_NAME)
{{- range .Values.kubernetes.excludeNamespaces }}
- --exclude-namespace={{ . }}
{{- end }}
{{- if .Values.events.enabled }}
- --pod-events
{{- end }}
{{- if .Values.statusAnnotation }}
- --pod-status
{{- end }}
{{- end }}
{{- if .Values.staticConfig }}
- --config=/etc/sidecar-agent/resources
{{- end }}
{{- if and .Values.cni.enabled .Values.kubernetes.enabled }}
- --cni
- --cni-bin-dir=/host/cni/bin
- --cni-conf-dir=/host/cni/conf
- --cni-run-dir={{ .Values.host.runDir }}
- --cni-agent-absent={{ .Values.cni.agentAbsent }}
- --cni-timeout={{ .Values.cni.timeoutSeconds | int }}
{{- end }}
# From the agent before, if one runs: of an update, or of a container that was started again.
- --take-over
# One that was relieved waits to be stopped: ended, it would be started again, and take over itself.
- --await-stop
- --instance={{ include "sidecar-agent.instance" . }}
{{- with .Values.agent.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end -}}
