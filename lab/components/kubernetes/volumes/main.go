// Command volumes gives claims their volumes: directories that every node sees, as if they came over a network.
//
// It is level-triggered: again and again it compares the claims and volumes there are with the directories there
// should be, so it may be killed anywhere. A volume's directory is made before the volume and removed before it.
// Classes are told apart by their parameter `reach`: with `node` a volume can only be used on the node its first pod
// was scheduled to, as a local disk. Sizes are recorded, and may grow, but are not enforced.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"log"
	"os"
	"path/filepath"
	"time"

	core "k8s.io/api/core/v1"
	storage "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	provisioner   = "lab.pgherd.io/volumes"
	provisionedBy = "pv.kubernetes.io/provisioned-by"
	selectedNode  = "volume.kubernetes.io/selected-node"
	tick          = 200 * time.Millisecond
)

type keeper struct {
	root    string
	client  kubernetes.Interface
	claims  corelisters.PersistentVolumeClaimLister
	volumes corelisters.PersistentVolumeLister
	classes storagelisters.StorageClassLister
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	root := flag.String("root", "", "the directory of all volumes")
	flag.Parse()
	if err := run(context.Background(), *kubeconfig, *root); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, kubeconfig, root string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	k := &keeper{
		root:    root,
		client:  client,
		claims:  factory.Core().V1().PersistentVolumeClaims().Lister(),
		volumes: factory.Core().V1().PersistentVolumes().Lister(),
		classes: factory.Storage().V1().StorageClasses().Lister(),
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	for {
		if err := k.reconcile(ctx); err != nil {
			log.Print(err)
			time.Sleep(time.Second)
		}
		time.Sleep(tick)
	}
}

func (k *keeper) reconcile(ctx context.Context) error {
	claims, err := k.claims.List(labels.Everything())
	if err != nil {
		return err
	}
	for _, claim := range claims {
		if err := k.serve(ctx, claim); err != nil {
			return err
		}
	}
	volumes, err := k.volumes.List(labels.Everything())
	if err != nil {
		return err
	}
	for _, volume := range volumes {
		if err := k.reclaim(ctx, volume); err != nil {
			return err
		}
	}
	return nil
}

// serve gives a claim its volume, or a larger one when it asks for more.
func (k *keeper) serve(ctx context.Context, claim *core.PersistentVolumeClaim) error {
	if claim.DeletionTimestamp != nil || claim.Spec.StorageClassName == nil {
		return nil
	}
	class, err := k.classes.Get(*claim.Spec.StorageClassName)
	if errors.IsNotFound(err) || (err == nil && class.Provisioner != provisioner) {
		return nil
	}
	if err != nil {
		return err
	}
	if claim.Spec.VolumeName != "" {
		return k.grow(ctx, claim)
	}
	waits := class.VolumeBindingMode != nil && *class.VolumeBindingMode == storage.VolumeBindingWaitForFirstConsumer
	if waits && claim.Annotations[selectedNode] == "" {
		return nil
	}
	return k.provision(ctx, claim, class)
}

func (k *keeper) provision(ctx context.Context, claim *core.PersistentVolumeClaim, class *storage.StorageClass) error {
	name := "pvc-" + string(claim.UID)
	if _, err := k.volumes.Get(name); err == nil {
		return nil // the control plane is about to bind it
	}
	path := filepath.Join(k.root, name)
	if err := os.MkdirAll(path, 0o777); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o777); err != nil { // for any user a pod may run as, whatever the mask
		return err
	}
	_, err := k.client.CoreV1().PersistentVolumes().Create(ctx, k.volume(name, path, claim, class), meta.CreateOptions{})
	if errors.IsAlreadyExists(err) {
		return nil
	}
	log.Printf("volume %s for claim %s/%s: %v", name, claim.Namespace, claim.Name, err)
	return err
}

func (k *keeper) volume(
	name, path string, claim *core.PersistentVolumeClaim, class *storage.StorageClass,
) *core.PersistentVolume {
	directory := core.HostPathDirectory
	volume := &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{Name: name, Annotations: map[string]string{provisionedBy: provisioner}},
		Spec: core.PersistentVolumeSpec{
			Capacity:         core.ResourceList{core.ResourceStorage: claim.Spec.Resources.Requests[core.ResourceStorage]},
			AccessModes:      claim.Spec.AccessModes,
			StorageClassName: class.Name,
			VolumeMode:       claim.Spec.VolumeMode,
			ClaimRef: &core.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim",
				Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
			PersistentVolumeSource: core.PersistentVolumeSource{
				HostPath: &core.HostPathVolumeSource{Path: path, Type: &directory},
			},
		},
	}
	if class.ReclaimPolicy != nil {
		volume.Spec.PersistentVolumeReclaimPolicy = *class.ReclaimPolicy
	}
	if node := claim.Annotations[selectedNode]; node != "" && class.Parameters["reach"] == "node" {
		volume.Spec.NodeAffinity = only(node)
	}
	return volume
}

func only(node string) *core.VolumeNodeAffinity {
	return &core.VolumeNodeAffinity{Required: &core.NodeSelector{NodeSelectorTerms: []core.NodeSelectorTerm{{
		MatchExpressions: []core.NodeSelectorRequirement{
			{Key: core.LabelHostname, Operator: core.NodeSelectorOpIn, Values: []string{node}},
		},
	}}}}
}

// grow records a larger size: on the volume first, then on its claim.
func (k *keeper) grow(ctx context.Context, claim *core.PersistentVolumeClaim) error {
	volume, err := k.volumes.Get(claim.Spec.VolumeName)
	if err != nil || volume.Annotations[provisionedBy] != provisioner || claim.Status.Phase != core.ClaimBound {
		return nil
	}
	wanted := claim.Spec.Resources.Requests[core.ResourceStorage]
	size := map[string]any{"capacity": core.ResourceList{core.ResourceStorage: wanted}}
	if given := volume.Spec.Capacity[core.ResourceStorage]; given.Cmp(wanted) < 0 {
		patch, _ := json.Marshal(map[string]any{"spec": size})
		volumes := k.client.CoreV1().PersistentVolumes()
		if _, err := volumes.Patch(ctx, volume.Name, types.MergePatchType, patch, meta.PatchOptions{}); err != nil {
			return err
		}
	}
	if told := claim.Status.Capacity[core.ResourceStorage]; told.Cmp(wanted) < 0 {
		patch, _ := json.Marshal(map[string]any{"status": size})
		claims := k.client.CoreV1().PersistentVolumeClaims(claim.Namespace)
		_, err = claims.Patch(ctx, claim.Name, types.MergePatchType, patch, meta.PatchOptions{}, "status")
	}
	if errors.IsNotFound(err) {
		return nil
	}
	return err
}

// reclaim removes a volume whose claim is gone, as its class says.
func (k *keeper) reclaim(ctx context.Context, volume *core.PersistentVolume) error {
	ours := volume.Annotations[provisionedBy] == provisioner && volume.DeletionTimestamp == nil
	deletes := volume.Spec.PersistentVolumeReclaimPolicy == core.PersistentVolumeReclaimDelete
	if !ours || !deletes || volume.Status.Phase != core.VolumeReleased {
		return nil
	}
	if err := os.RemoveAll(filepath.Join(k.root, volume.Name)); err != nil {
		return err
	}
	err := k.client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name, meta.DeleteOptions{})
	if errors.IsNotFound(err) {
		return nil
	}
	log.Printf("volume %s removed: %v", volume.Name, err)
	return err
}
